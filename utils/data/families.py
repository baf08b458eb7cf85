"""Systematic questions and answers in Vietnamese: facts and operations, each in several phrasings.

A family is either a table of facts (opposites, capitals, sums, units …) or an operation that
generalises (comparing, ordering, counting). Every table and phrasing was written by hand; nothing
here is random, so the rows are the same on every machine. `held_out` marks the rows meant for the
test split. In a table, such a row has a fact in a phrasing that train lacks for this fact; train
has the fact in the other phrasings, and the phrasing for other facts. In an operation, such a row
has new numbers or a new list.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple


class Instruction(NamedTuple):
    """A question with its right answer, and the fact and the value that make it right."""

    kind: str
    fact: str | None  # what it is about, perhaps in the other direction; None: unknown
    value: str | None  # the short answer that the sentence contains
    question: str
    answer: str
    held_out: bool = False


class Phrasing(NamedTuple):
    """A question and its answer with {0}, {1} … for the parts of a fact."""

    question: str
    answer: str
    value: int = 1  # the index of the part that is the short answer


Facts = list[tuple[str, ...]]


def _pairs(text: str) -> Facts:
    """Turn 'a=b, c=d' into [('a', 'b'), ('c', 'd')]."""
    return [tuple(part.strip() for part in pair.split("=")) for pair in text.split(",")]


OPPOSITES = _pairs(
    """cao=thấp, to=nhỏ, dài=ngắn, rộng=hẹp, dày=mỏng, nặng=nhẹ, nhanh=chậm, nóng=lạnh, sáng=tối,
    trắng=đen, già=trẻ, mới=cũ, đẹp=xấu, giàu=nghèo, no=đói, khô=ướt, cứng=mềm, đúng=sai,
    thật=giả, sạch=bẩn, sâu=nông, xa=gần, trên=dưới, trong=ngoài, trước=sau, trái=phải,
    lên=xuống, vào=ra, mở=đóng, mua=bán, yêu=ghét, vui=buồn, khóc=cười, khỏe=yếu,
    thông minh=ngu ngốc, chăm chỉ=lười biếng, dũng cảm=hèn nhát, hiền=dữ, thắng=thua, sống=chết,
    bắt đầu=kết thúc, ngày=đêm, đầu=cuối, nhiều=ít, thừa=thiếu, đầy=vơi, chìm=nổi,
    ồn ào=yên tĩnh, đắt=rẻ, khó=dễ, an toàn=nguy hiểm, lạc quan=bi quan, thành công=thất bại,
    đoàn kết=chia rẽ, hòa bình=chiến tranh, tiến=lùi, tăng=giảm, thẳng=cong, béo=gầy,
    sớm=muộn, thức=ngủ, nhớ=quên, khen=chê, bạn=thù, rộng rãi=chật hẹp, tích cực=tiêu cực,
    chủ động=bị động, khách quan=chủ quan, xuất khẩu=nhập khẩu, tối đa=tối thiểu,
    đồng ý=phản đối, giống=khác, căng=chùng, đặc=loãng, gọn gàng=bừa bộn, lịch sự=thô lỗ,
    khiêm tốn=kiêu ngạo, tiết kiệm=lãng phí, trung thực=dối trá, bình tĩnh=hoảng hốt,
    cẩn thận=cẩu thả, nhút nhát=bạo dạn, may mắn=xui xẻo, tập trung=phân tán,
    xây dựng=phá hoại, công khai=bí mật, đơn giản=phức tạp, hạnh phúc=bất hạnh, quen=lạ,
    nở=tàn, mọc=lặn, thuận lợi=khó khăn, hào phóng=keo kiệt, chung=riêng, sắc=cùn"""
)
SYNONYMS = _pairs(
    """siêng năng=cần cù, bố=cha, heo=lợn, máy bay=phi cơ, xe lửa=tàu hỏa, trẻ em=nhi đồng,
    đất nước=quốc gia, nhanh nhẹn=lanh lẹ, bóng đá=túc cầu, gan dạ=can đảm, nhà thơ=thi sĩ,
    ô=dù, bát=chén, thìa=muỗng, ngô=bắp, quả=trái, quyển=cuốn, lạc=đậu phộng, vừng=mè,
    mập=béo, hổ=cọp, cá quả=cá lóc, bạn bè=bằng hữu, giúp đỡ=hỗ trợ, khởi đầu=mở đầu,
    chấm dứt=kết thúc, buồn bã=buồn rầu, im lặng=lặng thinh, hiền lành=hiền hậu,
    thông minh=sáng dạ, biếng nhác=lười nhác, qua đời=từ trần, nói dối=nói xạo,
    thu hoạch=gặt hái, ngăn nắp=gọn ghẽ, mênh mông=bao la, khổng lồ=to tướng, cố gắng=nỗ lực,
    lo lắng=lo âu, phụ nữ=nữ giới, nam giới=đàn ông, thế giới=hoàn cầu, bệnh viện=nhà thương,
    nhà văn=văn sĩ, rực rỡ=chói lọi"""
)
CAPITALS = _pairs(
    """Việt Nam=Hà Nội, Lào=Viêng Chăn, Campuchia=Phnôm Pênh, Thái Lan=Băng Cốc,
    Trung Quốc=Bắc Kinh, Nhật Bản=Tokyo, Hàn Quốc=Seoul, Mông Cổ=Ulaanbaatar,
    Philippines=Manila, Malaysia=Kuala Lumpur, Brunei=Bandar Seri Begawan, Đông Timor=Dili,
    Ấn Độ=New Delhi, Pakistan=Islamabad, Bangladesh=Dhaka, Nepal=Kathmandu, Bhutan=Thimphu,
    Iran=Tehran, Iraq=Baghdad, Liban=Beirut, Jordan=Amman, Ả Rập Xê Út=Riyadh, Qatar=Doha,
    Oman=Muscat, Thổ Nhĩ Kỳ=Ankara, Nga=Moskva, Ba Lan=Warszawa, Cộng hòa Séc=Praha,
    Slovakia=Bratislava, Hungary=Budapest, Áo=Viên, Đức=Berlin, Pháp=Paris, Anh=London,
    Ireland=Dublin, Tây Ban Nha=Madrid, Bồ Đào Nha=Lisboa, Ý=Roma, Hy Lạp=Athens,
    Thụy Điển=Stockholm, Na Uy=Oslo, Phần Lan=Helsinki, Đan Mạch=Copenhagen,
    Iceland=Reykjavík, Bỉ=Brussels, Hà Lan=Amsterdam, Romania=Bucharest, Bulgaria=Sofia,
    Serbia=Belgrade, Croatia=Zagreb, Estonia=Tallinn, Latvia=Riga, Litva=Vilnius,
    Canada=Ottawa, Cuba=La Habana, Brazil=Brasília, Argentina=Buenos Aires, Chile=Santiago,
    Peru=Lima, Colombia=Bogotá, Venezuela=Caracas, Uruguay=Montevideo, Paraguay=Asunción,
    Ecuador=Quito, Úc=Canberra, New Zealand=Wellington, Kenya=Nairobi, Ethiopia=Addis Ababa,
    Ghana=Accra, Maroc=Rabat, Tunisia=Tunis, Senegal=Dakar, Fiji=Suva"""
)
CONTINENTS = {
    "châu Á": "Việt Nam, Lào, Thái Lan, Nhật Bản, Hàn Quốc, Mông Cổ, Ấn Độ, Nepal, Iraq, Qatar",
    "châu Âu": "Pháp, Đức, Ý, Ba Lan, Na Uy, Hy Lạp, Bồ Đào Nha, Bỉ, Thụy Điển, Phần Lan",
    "châu Phi": "Kenya, Ghana, Maroc, Tunisia, Senegal, Ethiopia, Nam Phi, Nigeria, Uganda, Mali",
    "châu Mỹ": "Canada, Cuba, Brazil, Chile, Peru, Colombia, Uruguay, Paraguay, Ecuador, Mexico",
}
SOUNDS = _pairs(
    """chó=gâu gâu, mèo=meo meo, gà trống=ò ó o, gà con=chiêm chiếp, vịt=cạc cạc, lợn=ụt ịt,
    bò=ụm bò, ếch=ộp ộp, chim cu=cúc cu, ngựa=hí hí, dế=ri ri, quạ=quạ quạ,
    chuột=chít chít, dê=be be, tắc kè=tắc kè"""
)
COLOURS = _pairs(
    """lá cây non=xanh, bầu trời quang mây=xanh, cỏ non=xanh, tuyết=trắng, bông gòn=trắng,
    sữa bò=trắng, than đá=đen, lông quạ=đen, cà chua chín=đỏ, máu=đỏ, quả gấc chín=đỏ,
    ớt chín=đỏ, hoa phượng=đỏ, chuối chín=vàng, lúa chín=vàng, lòng đỏ trứng gà luộc=vàng,
    nghệ=vàng, hoa mai ngày Tết=vàng, củ cà rốt=cam, vỏ quýt chín=cam, cà tím=tím,
    hoa sim=tím, hoa bằng lăng=tím, cà phê rang=nâu, vỏ hạt dẻ=nâu, hạt gạo tẻ=trắng,
    muối ăn=trắng, lá lúa non=xanh, dưa chuột=xanh"""
)
MEASURE_WORDS = {
    "con": "mèo, chó, gà, vịt, trâu, bò, cá, chim, ong, dao, kiến, ngựa, voi, thỏ",
    "cái": "bàn, ghế, nồi, bát, cốc, quạt, tủ, rổ, thìa, giường, chổi, cặp",
    "quyển": "sách, vở, từ điển, truyện, nhật ký, sổ tay",
    "chiếc": "thuyền, lá, nhẫn, xe đạp, máy bay, đũa, vòng, khăn",
    "bức": "tranh, ảnh, tượng, thư, tường",
    "tờ": "giấy, báo, lịch, đơn, tiền",
    "cây": "bút, tre, bàng, nến, thông, kem, đa",
    "ngôi": "nhà, chùa, sao, trường, làng, đền",
    "bông": "hoa hồng, hoa cúc, lúa, hoa sen, hoa hướng dương",
    "quả": "cam, bóng, trứng, đồi, na, mít, ổi",
    "hạt": "gạo, cát, thóc, đậu, ngô, tiêu",
    "giọt": "sương, nước mắt, mồ hôi, máu",
    "cuộn": "len, chỉ, băng dính, giấy vệ sinh",
    "bài": "vè, thơ, văn, toán",
    "dòng": "sông, suối, thác, nước",
    "tấm": "ảnh thẻ, ván, vải, bản đồ, thiệp",
}
KINDS_OF_THINGS = {
    "động vật": "con mèo, con voi, con cá chép, con kiến, con đại bàng, con ếch, con tôm, "
    "con bướm, con rắn, con hươu, con gà, con ong, con cua, con khỉ, con chuột, con cá heo, "
    "con rùa, con sư tử, con vịt, con thỏ, con nhện, con dơi, con ốc, con mực",
    "thực vật": "cây tre, cây lúa, cây xoài, hoa hồng, cây bàng, cỏ gà, rau muống, cây thông, "
    "hoa sen, cây dừa, bèo tấm, cây ngô, rau cải, cây chuối, hoa cúc, cây phượng, cây mía, "
    "cây bưởi, rau ngót, cây đa, hoa mai, cây sầu riêng, cây khoai lang, cây đậu xanh",
    "đồ vật": "cái bàn, chiếc xe đạp, quyển sách, cái nồi, cây bút, cái quạt, đôi giày, "
    "chiếc áo, cái gương, cái thìa, chiếc đồng hồ, cái ghế, cái kéo, chiếc ô, cái đèn, "
    "cái cặp sách, cái chổi, chiếc điện thoại, cái bát, cái thước kẻ, chiếc mũ, cái gối, "
    "cái khóa, chiếc vali",
}
LEGS = _pairs(
    """con chó=bốn, con mèo=bốn, con trâu=bốn, con ngựa=bốn, con voi=bốn, con lợn=bốn,
    con dê=bốn, con hổ=bốn, con gà=hai, con vịt=hai, con chim sẻ=hai, con đà điểu=hai,
    con ngỗng=hai, con kiến=sáu, con ong=sáu, con bướm=sáu, con dế=sáu, con ruồi=sáu,
    con muỗi=sáu, con nhện=tám, con bọ cạp=tám"""
)
JOBS = _pairs(
    """bác sĩ=chữa bệnh cho mọi người, giáo viên=dạy học cho học sinh,
    nông dân=trồng trọt và chăn nuôi, thợ may=may quần áo, thợ mộc=làm đồ gỗ,
    đầu bếp=nấu ăn, phi công=lái máy bay, lính cứu hỏa=dập tắt đám cháy,
    thợ cắt tóc=cắt tóc cho khách, ca sĩ=hát cho khán giả nghe, họa sĩ=vẽ tranh,
    nhà văn=viết truyện, ngư dân=đánh bắt cá tôm, thợ xây=xây nhà cửa,
    thủ thư=trông coi và cho mượn sách, thợ điện=lắp và sửa đường dây điện,
    kiến trúc sư=thiết kế nhà cửa, nha sĩ=chăm sóc và chữa răng, thợ rèn=rèn đồ sắt,
    bưu tá=đưa thư và bưu phẩm, thợ làm bánh=làm bánh, phiên dịch viên=dịch lời nói,
    nhà báo=viết tin tức, vận động viên=tập luyện và thi đấu thể thao"""
)
USES = _pairs(
    """cái kéo=cắt giấy và vải, cái chổi=quét nhà, cái nồi=nấu thức ăn, cái ô=che mưa che nắng,
    cái bút=viết chữ, cái búa=đóng đinh, cái quạt=làm mát, cái kim=khâu vá, cái thìa=múc canh,
    cái gương=soi mặt, cái cân=đo khối lượng, cái thước=đo độ dài, cái nhiệt kế=đo nhiệt độ,
    cái đồng hồ=xem giờ, cái la bàn=tìm phương hướng, cái cưa=cưa gỗ, cái gối=kê đầu khi ngủ,
    cái bàn là=là phẳng quần áo, cái cuốc=cuốc đất, cái bàn chải=đánh răng,
    cái tủ lạnh=giữ lạnh thức ăn, cái chìa khóa=mở khóa, cái phao=nổi trên mặt nước,
    cái tẩy=xóa vết bút chì, cái kính lúp=phóng to vật nhỏ"""
)
SHAPES = _pairs(
    """hình tam giác=ba, hình vuông=bốn, hình chữ nhật=bốn, hình thoi=bốn, hình bình hành=bốn,
    hình thang=bốn, hình ngũ giác=năm, hình lục giác=sáu, hình bát giác=tám"""
)

_DIGITS = ["không", "một", "hai", "ba", "bốn", "năm", "sáu", "bảy", "tám", "chín"]


def number_words(number: int) -> str:
    """A number from 0 to 99 in Vietnamese words.

    >>> [number_words(n) for n in (5, 10, 15, 21, 40, 95)]
    ['năm', 'mười', 'mười lăm', 'hai mươi mốt', 'bốn mươi', 'chín mươi lăm']
    """
    if not 0 <= number <= 99:
        raise ValueError(f"number_words({number}): give a number from 0 to 99.")
    tens, unit = divmod(number, 10)
    if tens == 0:
        return _DIGITS[unit]
    start = "mười" if tens == 1 else f"{_DIGITS[tens]} mươi"
    if unit == 0:
        return start
    end = {1: "một" if tens == 1 else "mốt", 5: "lăm"}.get(unit, _DIGITS[unit])
    return f"{start} {end}"


_IN_DIGITS = {number_words(number): str(number) for number in range(100)}


def _texts(cases: Iterable[tuple[int, ...]], form: Callable[[int], str] = str) -> Facts:
    return [tuple(form(number) for number in case) for case in cases]


SUMS = [(a, b, a + b) for a in range(1, 11) for b in range(1, a + 1)]
DIFFERENCES = [(a, b, a - b) for a in range(2, 13) for b in range(1, a)]
PRODUCTS = [(a, b, a * b) for a in range(2, 10) for b in range(2, a + 1)]
UNITS = [
    ("mét", 100, "xăng-ti-mét"),
    ("ki-lô-mét", 1000, "mét"),
    ("ki-lô-gam", 1000, "gam"),
    ("tấn", 1000, "ki-lô-gam"),
    ("lít", 1000, "mi-li-lít"),
    ("giờ", 60, "phút"),
    ("phút", 60, "giây"),
    ("tuần", 7, "ngày"),
    ("năm", 12, "tháng"),
    ("tá", 12, "chiếc"),
]
WEEKDAYS = "thứ Hai, thứ Ba, thứ Tư, thứ Năm, thứ Sáu, thứ Bảy, Chủ nhật".split(", ")  # noqa: SIM905
MONTHS = [f"tháng {number_words(month).title()}" for month in range(1, 13)]
MONTHS[3] = "tháng Tư"
LETTERS = """
    bàn, ghế, trường, lớp, mèo, gà, xe, nhà, sông, núi, biển, hoa, cây, quả, trăng, sao, mưa,
    nắng, bút, vở, thầy, cô, mẹ, cha, em, anh, chị, nghiêng, quê, thuyền, cá, chim, kem, tre
""".replace(",", " ").split()
PHRASES = """
    em yêu trường, quyển sách mới, trời xanh, mẹ nấu cơm ngon, con mèo nhỏ ngủ, học sinh chăm
    ngoan, hoa hồng, bé đi học, gió thổi nhẹ, ông kể chuyện cổ tích, chim hót, đàn cá bơi dưới
    nước, bầu trời đầy sao, chị em, cả nhà cùng xem phim, nắng vàng, bà trồng rau, thuyền ra khơi
"""


def _grouped(number: int) -> str:
    """The number with a full stop between thousands, as Vietnamese writes it: 3000 is 3.000."""
    return f"{number:,}".replace(",", ".")


def _number_tables() -> dict[str, tuple[Facts, list[Phrasing]]]:
    """Facts about numbers, units, days and letters, few enough to be memorised."""
    quotients = [(product, a, b) for a, b, product in PRODUCTS]
    units = [
        (str(n), big, _grouped(n * size), small) for big, size, small in UNITS for n in range(1, 7)
    ]
    days = list(zip(WEEKDAYS, WEEKDAYS[1:] + WEEKDAYS[:1], strict=True))
    months = list(zip(MONTHS, MONTHS[1:] + MONTHS[:1], strict=True))
    letters = [(word, str(len(word))) for word in LETTERS]
    phrases = [
        (phrase, number_words(len(phrase.split())))
        for phrase in " ".join(PHRASES.split()).split(", ")
    ]
    parity = [(str(n), "chẵn" if n % 2 == 0 else "lẻ", str(n % 10)) for n in range(10, 50)]
    return {
        "phép cộng": (
            _texts(SUMS),
            [
                Phrasing("{0} cộng {1} bằng mấy?", "{0} cộng {1} bằng {2}.", 2),
                Phrasing("Tính giúp em: {0} + {1} = ?", "{0} + {1} = {2} em nhé.", 2),
                Phrasing("Tổng của {0} và {1} là bao nhiêu?", "Tổng của {0} và {1} là {2}.", 2),
            ],
        ),
        "phép cộng bằng chữ": (
            _texts(SUMS, number_words),
            [
                Phrasing("{0} cộng với {1} là bao nhiêu?", "{0} cộng với {1} là {2}.", 2),
                Phrasing("Cho con hỏi {0} thêm {1} là mấy ạ?", "{0} thêm {1} là {2} con nhé.", 2),
                Phrasing(
                    "Bé đếm xem {0} và {1} gộp lại được mấy?",
                    "Dạ, {0} và {1} gộp lại được {2} ạ.",
                    2,
                ),
            ],
        ),
        "phép trừ": (
            _texts(DIFFERENCES),
            [
                Phrasing("{0} trừ {1} còn mấy?", "{0} trừ {1} còn {2}.", 2),
                Phrasing("Tính giúp em hiệu {0} - {1}.", "{0} - {1} = {2} em nhé.", 2),
                Phrasing("Lấy {0} bớt đi {1} thì còn bao nhiêu?", "{0} bớt {1} còn {2}.", 2),
            ],
        ),
        "phép nhân": (
            _texts(PRODUCTS),
            [
                Phrasing("{0} nhân {1} bằng bao nhiêu?", "{0} nhân {1} bằng {2}.", 2),
                Phrasing("Theo bảng cửu chương, {0} × {1} được mấy?", "{0} × {1} = {2} nhé.", 2),
                Phrasing(
                    "Tích của {0} và {1} là số nào ạ?", "Dạ, tích của {0} và {1} là {2} ạ.", 2
                ),
            ],
        ),
        "phép chia": (
            _texts(quotients),
            [
                Phrasing("{0} chia {1} được mấy?", "{0} chia {1} được {2}.", 2),
                Phrasing(
                    "Chia đều {0} cái kẹo cho {1} bạn, mỗi bạn được mấy cái?",
                    "Mỗi bạn được {2} cái kẹo.",
                    2,
                ),
                Phrasing("Kết quả của {0} : {1} là gì ạ?", "Dạ, {0} : {1} = {2} ạ.", 2),
            ],
        ),
        "toán đố thêm": (
            _texts(SUMS[1::2]),
            [
                Phrasing(
                    "Lan có {0} quả cam, mẹ cho thêm {1} quả. Lan có tất cả mấy quả cam?",
                    "Lan có tất cả {2} quả cam, vì {0} + {1} = {2}.",
                    2,
                ),
                Phrasing(
                    "Trên cành có {0} con chim, bay đến thêm {1} con. Hỏi có mấy con chim?",
                    "Trên cành có {2} con chim, vì {0} + {1} = {2}.",
                    2,
                ),
                Phrasing(
                    "Tổ em có {0} bạn nữ và {1} bạn nam thì tổ em có mấy bạn?",
                    "Tổ em có {2} bạn, vì {0} + {1} = {2}.",
                    2,
                ),
            ],
        ),
        "toán đố bớt": (
            _texts(DIFFERENCES[::2]),
            [
                Phrasing(
                    "Nam có {0} viên bi, cho bạn {1} viên. Nam còn lại mấy viên bi?",
                    "Nam còn lại {2} viên bi, vì {0} - {1} = {2}.",
                    2,
                ),
                Phrasing(
                    "Đĩa có {0} cái bánh, bé ăn {1} cái. Trên đĩa còn mấy cái bánh?",
                    "Trên đĩa còn {2} cái bánh, vì {0} - {1} = {2}.",
                    2,
                ),
                Phrasing(
                    "Bến có {0} chiếc thuyền, {1} chiếc ra khơi. Ở bến còn mấy chiếc?",
                    "Ở bến còn {2} chiếc thuyền, vì {0} - {1} = {2}.",
                    2,
                ),
            ],
        ),
        "đổi đơn vị": (
            units,
            [
                Phrasing("{0} {1} bằng bao nhiêu {3}?", "{0} {1} bằng {2} {3}.", 2),
                Phrasing("Đổi giúp em {0} {1} ra {3}.", "{0} {1} đổi ra được {2} {3} em nhé.", 2),
                Phrasing("Cho hỏi {0} {1} có bao nhiêu {3} ạ?", "Dạ, {0} {1} có {2} {3} ạ.", 2),
            ],
        ),
        "ngày trong tuần": (
            days,
            [
                Phrasing(
                    "Hôm nay là {0}, ngày mai là thứ mấy?", "Hôm nay là {0} thì ngày mai là {1}."
                ),
                Phrasing("Liền sau {0} là ngày nào trong tuần?", "Liền sau {0} là {1}."),
                Phrasing("Nếu hôm nay {1} thì hôm qua là thứ mấy?", "Hôm qua là {0}.", 0),
                Phrasing("Ngày đứng trước {1} là thứ mấy ạ?", "Dạ, trước {1} là {0} ạ.", 0),
            ],
        ),
        "tháng trong năm": (
            months,
            [
                Phrasing("Sau {0} là tháng nào?", "Sau {0} là {1}."),
                Phrasing(
                    "Bây giờ là {0}, tháng sau là tháng mấy?",
                    "Bây giờ là {0} thì tháng sau là {1}.",
                ),
                Phrasing("Trước {1} là tháng nào?", "Trước {1} là {0}.", 0),
                Phrasing(
                    "Đang là {1} thì tháng trước là tháng mấy ạ?", "Dạ, tháng trước là {0} ạ.", 0
                ),
            ],
        ),
        "số liền kề": (
            _texts((n, n + 1) for n in range(1, 41)),
            [
                Phrasing("Số liền sau của {0} là số nào?", "Số liền sau của {0} là {1}."),
                Phrasing("Đếm tiếp giúp em: sau số {0} là số mấy?", "Sau số {0} là số {1}."),
                Phrasing("Số nào đứng ngay trước {1}?", "Đứng ngay trước {1} là số {0}.", 0),
            ],
        ),
        "chẵn lẻ": (
            parity,
            [
                Phrasing("{0} là số chẵn hay số lẻ?", "{0} là số {1}, vì tận cùng là {2}."),
                Phrasing("Số {0} chẵn hay lẻ vậy bạn?", "Số {0} là số {1} bạn nhé."),
                Phrasing("Xếp số {0} vào nhóm chẵn hay nhóm lẻ?", "Xếp {0} vào nhóm số {1}."),
            ],
        ),
        "đếm chữ cái": (
            letters,
            [
                Phrasing("Từ “{0}” có mấy chữ cái?", "Từ “{0}” có {1} chữ cái."),
                Phrasing("Viết “{0}” cần bao nhiêu chữ cái?", "Viết “{0}” cần {1} chữ cái."),
                Phrasing("Bé đếm xem “{0}” có mấy chữ cái nào?", "Dạ, “{0}” có {1} chữ cái ạ."),
            ],
        ),
        "đếm tiếng": (
            phrases,
            [
                Phrasing("Cụm từ “{0}” có mấy tiếng?", "Cụm từ “{0}” có {1} tiếng."),
                Phrasing("Đếm giúp em số tiếng trong “{0}”.", "“{0}” có {1} tiếng em nhé."),
                Phrasing("Nói “{0}” là nói mấy tiếng?", "Nói “{0}” là nói {1} tiếng."),
            ],
        ),
    }


TABLES: dict[str, tuple[Facts, list[Phrasing]]] = {
    "trái nghĩa": (
        OPPOSITES + [(b, a) for a, b in OPPOSITES],
        [
            Phrasing("Từ trái nghĩa với “{0}” là gì?", "Từ trái nghĩa với “{0}” là “{1}”."),
            Phrasing(
                "Cho mình một từ trái nghĩa với “{0}” nhé.",
                "Bạn có thể dùng từ “{1}”, trái nghĩa với “{0}”.",
            ),
            Phrasing("Ngược lại với “{0}” là từ nào ạ?", "Dạ, ngược lại với “{0}” là “{1}” ạ."),
        ],
    ),
    "đồng nghĩa": (
        SYNONYMS,
        [
            Phrasing(
                "Tìm giúp em một từ đồng nghĩa với “{0}”.",
                "Một từ đồng nghĩa với “{0}” là “{1}”.",
            ),
            Phrasing(
                "Có từ nào cùng nghĩa với “{0}” không?",
                "Có, “{0}” cùng nghĩa với “{1}”.",
            ),
            Phrasing(
                "Thay từ “{0}” bằng từ nào thì nghĩa vẫn như cũ?",
                "Bạn có thể thay “{0}” bằng “{1}”.",
            ),
        ],
    ),
    "thủ đô": (
        CAPITALS,
        [
            Phrasing("Thủ đô của {0} là thành phố nào?", "Thủ đô của {0} là {1}."),
            Phrasing("{1} là thủ đô của nước nào?", "{1} là thủ đô của {0}.", 0),
            Phrasing("Cho em hỏi {0} có thủ đô tên gì ạ?", "Dạ, thủ đô của {0} tên là {1} ạ."),
            Phrasing(
                "Thành phố {1} là thủ đô của quốc gia nào vậy bạn?",
                "Thành phố {1} là thủ đô của {0} bạn nhé.",
                0,
            ),
        ],
    ),
    "châu lục": (
        [(land, part) for part, lands in CONTINENTS.items() for land in lands.split(", ")],
        [
            Phrasing("Nước {0} nằm ở châu lục nào?", "Nước {0} nằm ở {1}."),
            Phrasing("{0} thuộc châu nào vậy?", "{0} là một nước thuộc {1}."),
            Phrasing(
                "Trên bản đồ thế giới, em tìm {0} ở châu nào ạ?",
                "Em tìm {0} ở {1} nhé.",
            ),
        ],
    ),
    "tiếng kêu": (
        SOUNDS,
        [
            Phrasing("Con {0} kêu như thế nào?", "Con {0} kêu “{1}”."),
            Phrasing("Bé ơi, {0} kêu làm sao nhỉ?", "Dạ, {0} kêu “{1}” ạ."),
            Phrasing("Tiếng “{1}” là tiếng của con gì?", "“{1}” là tiếng của con {0}.", 0),
            Phrasing(
                "Nghe “{1}” thì biết con gì ở gần?", "Nghe “{1}” là biết có con {0} ở gần.", 0
            ),
        ],
    ),
    "màu sắc": (
        COLOURS,
        [
            Phrasing("Thường thì {0} có màu gì?", "Thường thì {0} có màu {1}."),
            Phrasing("Em muốn vẽ {0}, nên tô màu gì ạ?", "Để vẽ {0}, em tô màu {1} nhé."),
            Phrasing("Màu của {0} là màu nào?", "Màu của {0} là màu {1}."),
        ],
    ),
    "loại từ": (
        [(noun, unit) for unit, nouns in MEASURE_WORDS.items() for noun in nouns.split(", ")],
        [
            Phrasing(
                "Điền loại từ thích hợp: một … {0}.",
                "Loại từ thích hợp là “{1}”: một {1} {0}.",
            ),
            Phrasing(
                "Muốn đếm “{0}”, em nói thế nào cho đúng ạ?",
                "Em nói “một {1} {0}, hai {1} {0}” nhé.",
            ),
            Phrasing(
                "Trước từ “{0}” ta dùng loại từ nào?",
                "Trước “{0}” ta dùng “{1}”, ví dụ: hai {1} {0}.",
            ),
        ],
    ),
    "phân loại": (
        [(thing, kind) for kind, things in KINDS_OF_THINGS.items() for thing in things.split(", ")],
        [
            Phrasing(
                "Xếp “{0}” vào nhóm nào: động vật, thực vật hay đồ vật?",
                "“{0}” thuộc nhóm {1}.",
            ),
            Phrasing(
                "Theo bạn, {0} là động vật, thực vật hay đồ vật?",
                "Theo mình, {0} là {1}.",
            ),
            Phrasing(
                "Giúp em phân loại: {0} là đồ vật, thực vật hay động vật ạ?",
                "{0} là {1} em nhé.",
            ),
        ],
    ),
    "số chân": (
        LEGS,
        [
            Phrasing("Một {0} có mấy chân?", "Một {0} có {1} chân."),
            Phrasing("Cho em hỏi {0} đi bằng mấy chân ạ?", "Dạ, {0} có {1} chân ạ."),
            Phrasing("Đếm giúp mình số chân của {0}.", "{0} có tất cả {1} chân."),
        ],
    ),
    "nghề nghiệp": (
        JOBS,
        [
            Phrasing("Công việc của {0} là gì?", "Công việc của {0} là {1}."),
            Phrasing("Nghề nào chuyên {1}?", "Nghề chuyên {1} là {0}.", 0),
            Phrasing("Hằng ngày {0} làm gì hả mẹ?", "Hằng ngày, {0} {1}, con ạ."),
        ],
    ),
    "công dụng": (
        USES,
        [
            Phrasing("Người ta dùng {0} để làm gì?", "Người ta dùng {0} để {1}."),
            Phrasing("Muốn {1} thì cần đồ vật nào?", "Muốn {1}, bạn cần {0}.", 0),
            Phrasing("Cho em hỏi {0} có ích gì ạ?", "Dạ, {0} giúp ta {1} ạ."),
        ],
    ),
    "số cạnh": (
        SHAPES,
        [
            Phrasing("Một {0} có mấy cạnh?", "Một {0} có {1} cạnh."),
            Phrasing("Vẽ {0} thì cần bao nhiêu cạnh?", "Vẽ {0} cần {1} cạnh."),
            Phrasing("Cô ơi, {0} gồm mấy cạnh ạ?", "{0} gồm {1} cạnh em nhé."),
        ],
    ),
    **_number_tables(),
}


def _capital(text: str) -> str:
    """The text with its first letter in upper case, also after an opening quotation mark."""
    first = 1 if text.startswith("“") else 0
    return text[:first] + text[first : first + 1].upper() + text[first + 1 :]


def _fill(kind: str, fact: str, parts: Sequence[str], form: Phrasing, held: bool) -> Instruction:
    question, answer = form.question.format(*parts), form.answer.format(*parts)
    value = _IN_DIGITS.get(parts[form.value], parts[form.value])
    return Instruction(kind, fact, value, _capital(question), _capital(answer), held)


def _table_rows(kind: str) -> Iterator[Instruction]:
    """Each fact in all its phrasings but one; for some facts the remaining phrasing is held out.

    The phrasings rotate with the fact. The stride of the held-out facts has no common divisor
    with the number of phrasings, so each phrasing is tested, and train has it for other facts.
    """
    facts, phrasings = TABLES[kind]
    every = len(phrasings) + 1
    for number, parts in enumerate(facts):
        fact = f"{kind}: {'/'.join(sorted(parts))}"
        turns = [phrasings[(number + turn) % len(phrasings)] for turn in range(len(phrasings))]
        for form in turns[:-1]:
            yield _fill(kind, fact, parts, form, held=False)
        if number % every == 0:
            yield _fill(kind, fact, parts, turns[-1], held=True)


def _mixed(count: int, size: int) -> list[int]:
    """`count` different numbers below `size`, evenly spread: the stride is coprime to the size."""
    stride = next(s for s in range(int(size * 0.618), size) if math.gcd(s, size) == 1)
    return [index * stride % size for index in range(count)]


def _compared() -> Iterator[Instruction]:
    """Questions which of two numbers is larger or smaller; every eighth pair is held out."""
    pairs = [(a, b) for a in range(1, 60) for b in range(1, 60) if a != b]
    seen: set[frozenset[int]] = set()
    forms = [
        ("Số nào lớn hơn: {0} hay {1}?", "Số {2} lớn hơn số {3}.", max),
        ("Giữa {0} và {1}, số nào bé hơn ạ?", "Dạ, số {2} bé hơn số {3} ạ.", min),
        ("So sánh giúp em hai số {0} và {1}.", "{2} lớn hơn {3} em nhé.", max),
        ("Trong hai số {0} và {1}, đâu là số bé?", "Số bé là {2}, còn {3} lớn hơn.", min),
    ]
    for index in _mixed(240, len(pairs)):
        pair = pairs[index]
        if frozenset(pair) in seen:
            continue
        question, answer, best = forms[len(seen) % len(forms)]
        seen.add(frozenset(pair))
        first = best(pair)
        second = sum(pair) - first
        yield Instruction(
            "so sánh số",
            f"so sánh số: {min(pair)}/{max(pair)}",
            f"{first}/{second}",
            question.format(*pair),
            answer.format(*pair, first, second),
            len(seen) % 8 == 0,
        )


def _ordered() -> Iterator[Instruction]:
    """Questions for three numbers in rising or falling order; every eighth triple is held out."""
    forms = [
        ("Xếp các số {0} từ bé đến lớn.", "Từ bé đến lớn: {0}.", False),
        ("Sắp xếp {0} theo thứ tự giảm dần giúp em.", "Thứ tự giảm dần là {0} em nhé.", True),
        ("Viết giúp em {0} theo thứ tự tăng dần ạ.", "Dạ, thứ tự tăng dần là {0} ạ.", False),
    ]
    triples = list(itertools.permutations(range(1, 21), 3))
    seen: set[frozenset[int]] = set()
    for index in _mixed(150, len(triples)):
        triple = triples[index]
        if frozenset(triple) in seen:
            continue
        question, answer, falling = forms[len(seen) % len(forms)]
        seen.add(frozenset(triple))
        shown = ", ".join(map(str, triple))
        right = ", ".join(map(str, sorted(triple, reverse=falling)))
        fact = "sắp xếp số: " + "/".join(map(str, sorted(triple)))
        held = len(seen) % 8 == 0
        yield Instruction(
            "sắp xếp số", fact, right, question.format(shown), answer.format(right), held
        )


def _counted() -> Iterator[Instruction]:
    """Questions how many things a list names; every eighth list is held out."""
    baskets = [
        (
            "Giỏ có {0}. Hỏi giỏ có mấy loại quả?",
            "Giỏ có {0} loại quả.",
            "cam, táo, chuối, xoài, lê, ổi, nho, mận",
        ),
        (
            "Chuồng trại nuôi {0}. Đếm xem có mấy loài vật?",
            "Chuồng trại nuôi {0} loài vật.",
            "gà, vịt, lợn, bò, dê, thỏ, ngan, trâu",
        ),
        (
            "Trong cặp của bé có {0}. Bé mang mấy món nhỉ?",
            "Dạ, bé mang {0} món ạ.",
            "bút, thước, vở, tẩy, kéo, hộp màu, sách, hồ dán",
        ),
    ]
    number = 0
    for size in (2, 3, 4, 5):
        for start in range(8):
            for question, answer, things in baskets:
                names = (things.split(", ") * 2)[start : start + size]
                shown = ", ".join(names[:-1]) + " và " + names[-1]
                count = number_words(size)
                number += 1
                yield Instruction(
                    "đếm đồ vật",
                    f"đếm đồ vật: {shown}",
                    str(size),
                    question.format(shown),
                    answer.format(count),
                    number % 8 == 0,
                )


def systematic() -> list[Instruction]:
    """Every systematic row, always in the same order; no question occurs twice."""
    tables = (_table_rows(kind) for kind in TABLES)
    return list(itertools.chain(*tables, _compared(), _ordered(), _counted()))
